"""Blocks compiled or recomputed give the same training; who is compiled, and what is refused."""

import ctypes
import multiprocessing
import os
import resource
import shutil

import pytest
import torch
from torch._inductor.utils import clear_caches

from athanor import acceleration
from athanor.acceleration import MMAP_THRESHOLD, TRIM_THRESHOLD, accelerate, keep_freed_memory
from athanor.algorithms.pretraining import Pretraining
from athanor.algorithms.sft import SFT
from athanor.errors import UserError
from athanor.models.moe import MixtureOfExperts
from athanor.models.transformer import Block
from small import decoder, optimizer, steady

VOCABULARY = 31
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """A compiler that knows nothing yet; what its folder is set to is forgotten after the test."""
    torch.compiler.reset()
    clear_caches()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def algorithm(kind=Pretraining, **shape):
    return kind(decoder(VOCABULARY, **shape).train(), optimizer(1e-3), steady())


def cluster(compile=False, recompute="none"):
    return {"compile": compile, "recompute": recompute}


def gradients(made, seed=5):
    torch.manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(seed)  # dropout
    hidden = made.model.hidden_states(tokens[:, :-1])
    loss = made.model.cross_entropy(hidden, tokens[:, 1:])[0]
    if (auxiliary := made.model.auxiliary_loss()) is not None:
        loss = loss + auxiliary
    made.model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in made.model.named_parameters()}


@pytest.mark.parametrize("recompute", ["full", "selective"])
@pytest.mark.parametrize("shape", [{"dropout": 0.2}, {"feedforward": MixtureOfExperts(4, 2, balance=0.1)}], ids=str)
def test_recomputed_activations_give_the_same_gradients(tmp_path, recompute, shape):
    plain, made = algorithm(**shape), algorithm(**shape)
    accelerate(made, cluster(recompute=recompute), "cpu", 0.0, tmp_path)
    for (name, right), found in zip(gradients(plain).items(), gradients(made).values()):
        assert torch.equal(right, found), name


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputing_keeps_less(tmp_path, recompute):
    def kept(made):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = made.model.hidden_states(torch.arange(24)[None])
        del hidden
        return sum(sizes.values())

    plain, made = algorithm(layers=4), algorithm(layers=4)
    accelerate(made, cluster(recompute=recompute), "cpu", 0.0, tmp_path)
    assert kept(made) < 0.7 * kept(plain)


@needs_compiler
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_give_the_same_gradients_within_rounding(tmp_path, recompute):
    plain, made = algorithm(), algorithm()
    accelerate(made, cluster(compile=True, recompute=recompute), "cpu", 0.0, tmp_path)
    for (name, right), found in zip(gradients(plain).items(), gradients(made).values()):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5, msg=name)
    assert any(tmp_path.rglob("*.so")), "what was compiled is kept for the next run"
    made.model.eval()
    with torch.no_grad():  # and sampling, whose shapes change with each token, is left to eager
        cache = made.model.new_cache(1, 8)
        for token in range(4):
            made.model(torch.tensor([[token]]), cache=cache)


def compiled(made):
    return [module._compiled_call_impl is not None for module in made.modules() if isinstance(module, Block)]


def test_who_is_compiled_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: "/usr/bin/g++")
    for kind, flops, expected in ((Pretraining, 1e17, True), (Pretraining, 1e12, False), (SFT, 1e17, False)):
        made = algorithm(kind)
        accelerate(made, cluster("auto"), "cpu", flops, tmp_path)
        assert compiled(made) == [expected] * 2, (kind, flops)
    made = algorithm()
    made.add_frozen("reference", decoder(VOCABULARY))
    accelerate(made, cluster(True), "cpu", 0.0, tmp_path)
    assert compiled(made) == [True, True, False, False], "a frozen model is not trained, and gains little"


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: "/usr/bin/g++")
    with pytest.raises(UserError, match=r"cluster\.recompute=none or full"):
        accelerate(algorithm(), cluster(True, "selective"), "cpu", 0.0, tmp_path)
    monkeypatch.setattr(acceleration.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"install g\+\+"):
        accelerate(algorithm(), cluster(True), "cpu", 0.0, tmp_path)
    made = algorithm()
    accelerate(made, cluster("auto"), "cpu", 1e17, tmp_path)
    assert compiled(made) == [False, False]


def test_freed_memory_is_kept(monkeypatch) -> None:
    """After the first steps no pages are mapped any more for 100 MB that are taken and freed in each."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    kept, given_back = (faults_of_steps(keep) for keep in (True, False))
    assert kept < 1000 < given_back
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()  # the user has settings of his own


def faults_of_steps(keep: bool) -> int:
    """Page faults of two steps, in a process of their own, for the settings stay."""
    with multiprocessing.get_context("fork").Pool(1) as one:
        return one.apply(take_and_free, (keep,))


def take_and_free(keep: bool) -> int:
    if keep:
        assert keep_freed_memory()
    else:
        glibc = ctypes.CDLL(None)
        assert glibc.mallopt(MMAP_THRESHOLD, 2**17)
        assert glibc.mallopt(TRIM_THRESHOLD, 2**17)
    for step in range(4):
        if step == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = b"x" * (100 * 2**20)
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
