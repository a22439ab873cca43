import subprocess
import sys

import edgelm


def test_the_public_names_are_those_of_all() -> None:
    assert sorted(edgelm.__all__) == dir(edgelm)
    for name in edgelm.__all__:
        assert getattr(edgelm, name) is not None
    # Submodules show up as attributes once they are imported; everything else public is in __all__.
    modules = {name.rpartition(".")[2] for name in sys.modules if name.startswith("edgelm.")}
    public = {name for name in vars(edgelm) if not name.startswith("_")} - modules
    assert public - {"Any", "TYPE_CHECKING", "annotations", "importlib"} <= set(edgelm.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(edgelm, "no_such_name")


def test_every_error_is_an_edgelm_error() -> None:
    public = [getattr(edgelm, name) for name in edgelm.__all__]
    errors = [value for value in public if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) > 10
    assert all(issubclass(error, edgelm.EdgeLMError) for error in errors)


def test_importing_edgelm_brings_no_heavy_library() -> None:
    program = (
        "import sys, edgelm; edgelm.GenerationConfig(); "
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'numpy', 'tokenizers', 'jinja2'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    subprocess.run([sys.executable, *strict, "-c", program], check=True)


def test_a_loaded_model_brings_neither_torch_nor_onnx_and_reads_nothing_in_the_encoding_of_a_locale() -> None:
    program = (
        "import sys, edgelm, edgelm.testing; edgelm.load(edgelm.testing.tiny_model_path()).score('The sea'); "
        "heavy = {'torch', 'onnx', 'transformers', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    subprocess.run([sys.executable, *strict, "-c", program], check=True)
