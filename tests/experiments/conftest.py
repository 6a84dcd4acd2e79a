import importlib

import pytest


@pytest.fixture(scope="module")
def get_smollm2(request):
    """The script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(request.config.rootpath / "experiments")
        yield importlib.import_module("get_smollm2")


@pytest.fixture(scope="module")
def folder(get_smollm2, tmp_path_factory):
    """The folder of the tiny model."""
    from tests.experiments import small_gguf as small

    path = tmp_path_factory.mktemp("small")
    return get_smollm2.main(get_smollm2.Config(out=path / "model", gguf=small.write(path / "small.gguf")))
