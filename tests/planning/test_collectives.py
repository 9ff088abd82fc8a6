"""Bytes of collectives and memory traffic in compiled programs, with loops in the forms that compilers emit."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.planning import collectives, hlo, traffic

DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()[:DEVICES]), ("x",))


def compiled(mesh, function, *arrays):
    """The module of a function over one shard of each array, split along its first axis."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec("x")
    )
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arrays]
    return hlo.parse_module(jax.jit(mapped).lower(*shapes).compile().as_text())


def test_all_reduce_sends_twice_its_bytes_on_a_ring(mesh):
    module = compiled(mesh, lambda x: jax.lax.psum(x, "x") + x, jnp.ones((8, 100), jnp.float32))
    found = collectives.count_collectives(module)
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].num_bytes == 400
    assert found["all-reduce"].sent_bytes == pytest.approx(2 * 400 * 7 / 8)


def test_all_gather_counts_the_gathered_array(mesh):
    def gather(x):
        return jnp.sin(jax.lax.all_gather(x, "x", tiled=True))[:1] * x

    found = collectives.count_collectives(compiled(mesh, gather, jnp.ones((8, 100), jnp.float32)))
    assert found["all-gather"].num_bytes == 8 * 400
    assert found["all-gather"].sent_bytes == pytest.approx(7 * 400)


def test_reduce_scatter_counts_the_array_that_it_reduces(mesh):
    def scatter(x):
        return jax.lax.psum_scatter(jnp.tile(x, (8, 1)) * jnp.sin(x), "x", tiled=True)

    found = collectives.count_collectives(compiled(mesh, scatter, jnp.ones((8, 100), jnp.float32)))
    assert found["reduce-scatter"].num_bytes == 8 * 400
    assert found["reduce-scatter"].sent_bytes == pytest.approx(7 * 400)


def test_a_loop_multiplies_the_collectives_of_its_body(mesh):
    def loop(x):
        def body(carry, _):
            shifted = jax.lax.ppermute(carry, "x", [(i, (i + 1) % 8) for i in range(8)])
            return jnp.sin(shifted), None

        return jax.lax.scan(body, x, None, length=13)[0]

    module = compiled(mesh, loop, jnp.ones((8, 100), jnp.bfloat16))
    found = collectives.count_collectives(module)["collective-permute"]
    assert module.unknown_loops == ()
    assert found.count == 13
    # XLA on CPU may widen bfloat16.
    assert found.sent_bytes in (13 * 200, 13 * 400)


def module_text(bound="constant(7)", step="constant(2)"):
    """A loop around a permutation whose counter steps by two, as after unrolling; no annotation states its trip count."""
    return textwrap.dedent(f"""\
        HloModule m, num_partitions=4

        %body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
          %p = (s32[]{{:T(128)}}, f32[4]{{0:T(128)}}) parameter(0)
          %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
          %x = f32[4]{{0:T(128)}} get-tuple-element(%p), index=1
          %two = s32[]{{:T(128)}} {step}
          %c = s32[]{{:T(128)}} copy(%i)
          %next = s32[]{{:T(128)}} add(%c, %two)
          %s = (f32[4]{{0}}, f32[4]{{0}}, u32[]{{:S(2)}}) collective-permute-start(%x), channel_id=1, source_target_pairs={{{{0,1}}}}
          %d = f32[4]{{0:T(128)}} collective-permute-done(%s)
          ROOT %t = (s32[], f32[4]) tuple(%next, %d)
        }}

        %condition (p: (s32[], f32[4])) -> pred[] {{
          %p = (s32[], f32[4]) parameter(0)
          %i = s32[] get-tuple-element(%p), index=0
          %n = s32[] {bound}
          ROOT %less = pred[] compare(%i, %n), direction=LT
        }}

        ENTRY %main (a: f32[4]) -> f32[4] {{
          %a = f32[4]{{0:T(128)}} parameter(0)
          %zero = s32[] constant(0)
          %start = (s32[], f32[4]) tuple(%zero, %a)
          %w = (s32[], f32[4]) while(%start), condition=%condition, body=%body
          ROOT %r = f32[4]{{0:T(128)}} get-tuple-element(%w), index=1
        }}
        """)


def test_trip_counts_are_found_without_annotation():
    found = collectives.count_collectives(hlo.parse_module(module_text()))
    assert found["collective-permute"].count == 4  # 0, 2, 4, 6
    assert found["collective-permute"].num_bytes == 4 * 16


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    module = hlo.parse_module(module_text(bound="custom-call(%i)"))
    assert module.unknown_loops == ("w",)
    assert collectives.count_collectives(module)["collective-permute"].count == 1


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0'}", 16),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=2] {'axis_0','axis_1'}", 32),
        ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}", 4),
        ("replica_groups={}", 4),
    ],
)
def test_group_sizes_in_every_notation(groups, members):
    line = f"  %g = f32[64]{{0}} all-gather(%a), channel_id=1, {groups}, dimensions={{0}}"
    instruction = hlo.parse_instruction(line)
    module = hlo.parse_module(module_text())
    assert collectives.group_size(instruction, module) == members


def test_pieces_of_one_asynchronous_collective_count_once():
    piece = """\
        %async_collective_fusion.{0} (p: f32[4]) -> f32[16] {{
          %p = f32[4]{{0}} parameter(0)
          ROOT %g = f32[16]{{0}} all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={{0}}
        }}

        """
    text = textwrap.dedent(
        "HloModule m, num_partitions=4\n\n"
        + "".join(textwrap.dedent(piece.format(number)) for number in (1, 2))
        + textwrap.dedent("""\
        ENTRY %main (a: f32[4]) -> f32[16] {
          %a = f32[4]{0} parameter(0)
          %b = f32[16]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
          ROOT %c = f32[16]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
        }
        """)
    )
    assert collectives.count_collectives(hlo.parse_module(text))["all-gather"].count == 1


def spread_over_a_loop(iterations):
    """A gather that overlaps with all layers, as on a TPU: a start, a part in the loop's body, and an end name one channel."""
    gather = "all-gather(%p), channel_id=5, replica_groups=[1,4]<=[4], dimensions={0}"
    part = f"""\
        %{{0}} (p: f32[4]) -> f32[16] {{{{
          %p = f32[4]{{{{0}}}} parameter(0)
          ROOT %g = f32[16]{{{{0}}}} {gather.replace("{", "{{").replace("}", "}}")}
        }}}}

        """
    names = ("fused_computation.1", "async_collective_fusion.2", "fused_computation.3")
    text = textwrap.dedent(
        "HloModule m, num_partitions=4\n\n"
        + "".join(textwrap.dedent(part.format(name)) for name in names)
        + textwrap.dedent("""\
        %body (b: (f32[4], f32[16])) -> (f32[4], f32[16]) {
          %b = (f32[4]{0}, f32[16]{0}) parameter(0)
          %x = f32[4]{0} get-tuple-element(%b), index=0
          %y = f32[16]{0} fusion(%x), kind=kCustom, calls=%async_collective_fusion.2
          ROOT %t = (f32[4]{0}, f32[16]{0}) tuple(%x, %y)
        }

        %condition (c: (f32[4], f32[16])) -> pred[] {
          %c = (f32[4]{0}, f32[16]{0}) parameter(0)
          ROOT %more = pred[] constant(true)
        }

        ENTRY %main (a: f32[4]) -> f32[16] {
          %a = f32[4]{0} parameter(0)
          %start = f32[16]{0} fusion(%a), kind=kCustom, calls=%fused_computation.1
          %tuple = (f32[4]{0}, f32[16]{0}) tuple(%a, %start)
          %w = (f32[4]{0}, f32[16]{0}) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"TIMES"}}
          ROOT %end = f32[16]{0} fusion(%a), kind=kCustom, calls=%fused_computation.3
        }
        """)
    )
    return hlo.parse_module(text.replace("TIMES", str(iterations)))


def test_a_collective_that_is_spread_over_a_loop_counts_once():
    module = spread_over_a_loop(24)
    assert module.runs["async_collective_fusion.2"] == 24
    found = collectives.count_collectives(module)["all-gather"]
    assert (found.count, found.num_bytes) == (1, 64)
    assert traffic.memory_bytes(module) == traffic.memory_bytes(spread_over_a_loop(1))


def test_text_that_is_not_a_module_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse_module("nothing")


def test_memory_traffic_counts_a_slice_and_not_the_sliced_array():
    text = textwrap.dedent("""\
        HloModule m

        %fused (stack: f32[24,100], i: s32[]) -> f32[100] {
          %stack = f32[24,100]{1,0} parameter(0)
          %i = s32[] parameter(1)
          %slice = f32[1,100]{1,0} dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,100}
          %flat = f32[100]{0} bitcast(%slice)
          ROOT %sine = f32[100]{0} sine(%flat)
        }

        ENTRY %main (a: f32[24,100], i: s32[]) -> f32[100] {
          %a = f32[24,100]{1,0} parameter(0)
          %i = s32[]{:S(1)} parameter(1)
          %near = f32[100]{0:T(128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
          ROOT %far = f32[100]{0} negate(%near)
        }
        """)
    # The slice is read from main memory into on-chip memory, and its negation is written to main memory.
    assert traffic.memory_bytes(hlo.parse_module(text)) == 400 + 400


def test_memory_traffic_of_results_that_are_updated_in_place_is_the_updated_part():
    text = textwrap.dedent("""\
        HloModule m

        %fused (stack: f32[24,100], x: f32[1,100], i: s32[]) -> (f32[24,100], f32[1,100]) {
          %stack = f32[24,100]{1,0} parameter(0)
          %x = f32[1,100]{1,0} parameter(1)
          %i = s32[] parameter(2)
          %sine = f32[1,100]{1,0} sine(%x)
          %saved = f32[24,100]{1,0} dynamic-update-slice(%stack, %sine, %i, %i)
          ROOT %both = (f32[24,100]{1,0}, f32[1,100]{1,0}) tuple(%saved, %sine)
        }

        ENTRY %main (a: f32[24,100], x: f32[1,100], i: s32[]) -> (f32[24,100], f32[1,100]) {
          %a = f32[24,100]{1,0} parameter(0)
          %x = f32[1,100]{1,0} parameter(1)
          %i = s32[]{:S(1)} parameter(2)
          ROOT %r = (f32[24,100]{1,0}, f32[1,100]{1,0}) fusion(%a, %x, %i), kind=kLoop, calls=%fused
        }
        """)
    # x is read; the slice of the stack and the second result are written.
    assert traffic.memory_bytes(hlo.parse_module(text)) == 3 * 400
