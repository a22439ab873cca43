"""Every error that edgelm raises on purpose: one tree, so that `except edgelm.EdgeLMError` catches them all."""


class EdgeLMError(Exception):
    """Base of all errors of edgelm; the message names what is wrong, the value, and the way out."""


class ConfigError(EdgeLMError):
    """A configuration (ModelConfig, GenerationConfig, a command's setting) has an invalid value."""


class CheckpointError(EdgeLMError):
    """A checkpoint (Hugging Face folder, safetensors or GGUF file) is broken, incomplete or unsupported."""


class PackageError(EdgeLMError):
    """A model package is broken, incomplete or does not match its manifest."""


class TokenizerError(EdgeLMError):
    """A tokenizer file cannot be read or rebuilt, or a token does not exist."""


class ChatTemplateError(EdgeLMError):
    """A chat template is missing, broken, or refuses the conversation."""


class DataError(EdgeLMError):
    """Training data (texts, conversations, token shards) is missing, broken, or not what it was."""


class ProviderError(EdgeLMError):
    """ONNX Runtime or one of its execution providers is missing, did not start, or fails at a graph."""


class ContextLengthError(EdgeLMError):
    """A prompt does not fit the model's context, or the memory; the message has both counts."""


class OutOfMemoryError(EdgeLMError, MemoryError):
    """There is no memory left for what is to be computed."""


class ThreadLimitError(EdgeLMError):
    """The system lets this process start no more threads."""


class QueueFullError(EdgeLMError):
    """An engine has as many waiting requests as it takes; try again later."""


class ModelNotFoundError(EdgeLMError):
    """No model of that name or path exists here."""


class DownloadError(EdgeLMError):
    """A download failed, or what arrived does not match its checksum."""


class UploadError(EdgeLMError):
    """A package cannot be uploaded: there is no token, or the hub cannot be reached or refuses."""


class MissingExtraError(EdgeLMError):
    """A feature needs an optional dependency; the message is the pip line that adds it."""


class ExportError(EdgeLMError):
    """A checkpoint cannot be exported as asked."""


class VerificationError(ExportError):
    """An exported package does not reproduce its source within the bounds of its precision."""


class TrainingError(EdgeLMError):
    """A training run cannot go on: its loss is no number, its folder is in use, or its checkpoints do not fit it."""
