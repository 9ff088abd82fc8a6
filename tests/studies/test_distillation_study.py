"""The study of distillation: one start and equal updates for all arms, and a page of what has finished."""

import json

from studies import distillation, distillation_report, teacher_hacking


def test_arms_share_the_teachers_and_students_of_teacher_hacking(tmp_path):
    own = {job.name for job in distillation.jobs(tmp_path, tmp_path)}
    theirs = {job.name for job in teacher_hacking.jobs(tmp_path, tmp_path)}
    assert {"oracle", "teacher/seed0", "student/seed2", "starts/seed1"} <= own & theirs
    assert not {name for name in own - theirs if not name.startswith("distillation/")}
    assert not {name for name in own if name.startswith("offline")}


def test_a_divergence_has_an_arm_on_both_sources_and_all_have_one_share_of_acts():
    sources = {arm: where for arm, (where, _) in distillation.ARMS.items()}
    assert len({where[0] for where in sources.values()}) == 1
    for name in ("forward", "reverse", "jensen_shannon"):
        assert {sources[f"{name}_teacher"][2], sources[f"{name}_own"][2]} == {0.0, 1.0}


def test_the_page_shows_finished_arms_and_their_differences(tmp_path):
    page = distillation_report.report(tmp_path)
    assert "`reverse_own` (0)" in page
    for arm, seed, distance in (
        ("forward_teacher", 0, 1.0),
        ("reverse_own", 0, 1.5),
        ("reverse_own", 1, 9.0),
    ):
        result = {
            "epochs": [0, 1],
            "golden": [3.0, distance],
            "proxy": [2.0, distance],
            "steps": 20,
            "from_student": {"teacher": distance, "oracle": distance},
            "slot_errors": 0.1,
            "distinct_2": 0.2,
            "length": 20.0,
        }
        folder = tmp_path / f"distillation/{arm}/seed{seed}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    page = distillation_report.report(tmp_path, tmp_path / "page.png")
    assert "| `reverse_own`" in page and "5.250 ± 5.303" in page
    # The second seed has no base to be compared with.
    differences = page.partition("Differences from")[2]
    assert "0.500" in differences and "8.000" not in differences
    assert "`reverse_own` (2)" in page and (tmp_path / "page.png").stat().st_size
