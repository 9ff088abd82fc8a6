"""The jobs of studies: complete graphs in an order in which they can run, and a name for each job."""

import pytest

from studies import (
    a_lol,
    byte_strings,
    distillation,
    feature_reward,
    feature_reward_policy,
    frontiers,
    goal_conditioned,
    goal_steering,
    intuitive_fine_tuning,
    modpo_text,
)

STUDIES = [
    a_lol,
    byte_strings,
    distillation,
    feature_reward,
    feature_reward_policy,
    frontiers,
    goal_conditioned,
    goal_steering,
    intuitive_fine_tuning,
    modpo_text,
]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_every_job_has_what_it_needs_and_a_name_of_its_own(study, tmp_path):
    jobs = study.jobs(tmp_path, tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for position, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:position])
