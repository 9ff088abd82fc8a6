"""The RQ-VAE: where its gradients go, how it starts, and what becomes of codes that nothing uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.retrieval import rqvae
from jaxalign.retrieval.quantizers import get_quantizer
from jaxalign.retrieval.residual_quantization import quantize

SETTINGS = rqvae.RQVAESettings(latent=3, hidden=(6,), batch_size=32, steps=30, reseed_period=10)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    return rqvae.RQVAE(5, 2, 4, SETTINGS)


@pytest.fixture(scope="module")
def params(network, vectors):
    made = network.init(jax.random.key(0), vectors)["params"]
    # Codes as large as latent vectors, so that no term is close to zero.
    return {**made, "codebooks": jax.random.normal(jax.random.key(1), (2, 4, 3))}


def gradients(network, params, vectors, term):
    found = jax.grad(lambda p: getattr(network.apply({"params": p}, vectors), term))(params)
    return {name: max(map(float, map(jnp.abs, map(jnp.max, map(jnp.abs, jax.tree.leaves(g))))))
            for name, g in found.items()}  # fmt: skip


def test_every_term_trains_what_it_should_and_nothing_else(network, params, vectors):
    codebook = gradients(network, params, vectors, "codebook")
    assert codebook["codebooks"] > 0 and codebook["encoder"] == codebook["decoder"] == 0
    commitment = gradients(network, params, vectors, "commitment")
    assert commitment["encoder"] > 0 and commitment["codebooks"] == commitment["decoder"] == 0
    # Straight through: the reconstruction trains the encoder past the codes, and not the codes.
    reconstruction = gradients(network, params, vectors, "reconstruction")
    assert reconstruction["encoder"] > 0 and reconstruction["decoder"] > 0
    assert reconstruction["codebooks"] == 0


def test_the_terms_are_those_of_the_equation(network, params, vectors):
    losses = network.apply({"params": params}, vectors)
    latents = np.asarray(rqvae.encode(network, params, vectors))
    found = quantize(latents, np.asarray(params["codebooks"]))
    decoded = np.asarray(rqvae.decode(network, params, found.sums))
    squares = np.square(found.residuals[:, 1:]).sum(axis=-1)  # |r_{m-1} - c_m|^2 is |r_m|^2
    np.testing.assert_array_equal(losses.codes, found.codes)
    assert float(losses.codebook) == pytest.approx(squares.mean(0).sum(), rel=1e-4)
    assert float(losses.commitment) == pytest.approx(squares.mean(0).sum(), rel=1e-4)
    expected = np.square(vectors - decoded).sum(axis=1).mean()
    assert float(losses.reconstruction) == pytest.approx(expected, rel=1e-4)
    assert float(losses.total(0.25)) == pytest.approx(
        expected + 1.25 * squares.mean(0).sum(), rel=1e-4
    )


def test_training_lowers_the_loss_and_uses_the_codes(network, vectors):
    fitted = rqvae.fit(vectors, 2, 4, SETTINGS, seed=0)
    untrained = network.init(jax.random.key(0), vectors)["params"]
    assert fitted.loss < float(network.apply({"params": untrained}, vectors).total(0.25))
    codes = network.apply({"params": fitted.params}, vectors).codes
    assert len(np.unique(codes[:, 0])) == 4


def test_codes_that_nothing_uses_move_to_residuals(network, params, vectors):
    far = params["codebooks"].at[1, 2].set(1e3)
    used = np.ones((2, 4), bool)
    used[1, 2] = False
    moved, count = rqvae._reseed(
        network, {**params, "codebooks": far}, vectors, used, np.random.default_rng(0)
    )
    latents = np.asarray(rqvae.encode(network, params, vectors))
    level = quantize(latents, np.asarray(far)).residuals[:, 1]
    assert count == 1
    assert np.isclose(level, np.asarray(moved)[1, 2], atol=1e-5).all(axis=1).any()
    np.testing.assert_array_equal(np.asarray(moved)[0], np.asarray(far)[0])


def test_an_rqvae_is_the_same_after_it_was_stored(vectors):
    quantizer = get_quantizer("rqvae:latent=3,hidden=6,steps=5")
    arrays = quantizer.fit(10 * vectors, 2, 4, seed=0)
    assert all(array.dtype == np.float32 for array in arrays.values())
    codes = quantizer.encode(arrays, 10 * vectors)
    assert codes.shape == (64, 2)
    # In units of the vectors, though the network reads standardised ones.
    assert np.std(quantizer.decode(arrays, codes)) < 20
