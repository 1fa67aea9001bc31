"""LoRA adapters in PEFT's format, merged into their base in float32, or refused where a merge would not be the model
that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kvattn.errors import KvattnError
from kvattn.files import is_lfs_pointer, read_json, sha256
from kvattn.models.loading import first_line, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHIPPED = Path(__file__).parent / "adapters"  # one folder per adapter; its name is a model's name
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What an adapter may say of itself: how it was trained, or what a merge holds. Anything else that is set is refused.
_TRAINED = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_type", "peft_version"}
_TRAINED |= {"corda_config", "eva_config", "loftq_config", "qalora_group_size", "revision", "runtime_config"}
_TRAINED |= {"init_lora_weights", "task_type", "megatron_core"}
_MERGED = {"alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform"}
_MERGED |= {"lora_alpha", "lora_bias", "modules_to_save", "r", "rank_pattern", "target_modules", "use_dora"}
_MERGED |= {"use_rslora"}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's weights


def is_adapter(folder: Path | None) -> bool:
    """Whether the folder holds an adapter and no model."""
    return folder is not None and (folder / CONFIG).is_file()


def shipped() -> dict[str, Path]:
    """The adapters that come with kvattn, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{CONFIG}"))}


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises KvattnError for one whose merge would not be the model that was trained."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise KvattnError(f"{folder / CONFIG} cannot be read ({first_line(error)}); fetch it again") from error
    if not isinstance(config, dict):
        raise KvattnError(f"{folder / CONFIG} holds no configuration; fetch it again")
    if config.get("peft_type") != "LORA":
        raise _refusal(folder, f"it is of the kind {config.get('peft_type')}, not LORA")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refusal(folder, f"it is made for {config['task_type']}, not for a causal language model")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise _refusal(folder, f"its start ({config['init_lora_weights']}) changes the base's weights")
    if odd := sorted(key for key, value in config.items() if value and key not in _TRAINED | _MERGED):
        raise _refusal(folder, f"it sets {', '.join(odd)}")
    return config


def base_name(folder: Path) -> str:
    """The base that the adapter names, as kvattn spells it. Raises KvattnError where it names none."""
    config = read_config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not name or not isinstance(name, str):
        raise KvattnError(f"the adapter {folder} names no base; say which is meant: BASE+{folder}")
    return f"{name}@{revision}" if revision and "/" in name and not Path(name).exists() else name


def check_base(folder: Path, base: Path, name: str) -> None:
    """Raises KvattnError where the adapter's kvattn.json names the weights of its base and these are others."""
    try:
        record = read_json(folder / "kvattn.json")
    except (OSError, ValueError):
        return
    wanted = record.get("base_weights") if isinstance(record, dict) else None
    if wanted and (not isinstance(wanted, dict) or {*map(str, wanted.values())} != {*base_weights(base).values()}):
        raise KvattnError(f"the adapter {folder} was trained on other weights than those of {name}; name its own base")


def base_weights(base: Path) -> dict[str, str]:
    """File name to "sha256:..." of a model's weights; an adapter's kvattn.json may hold it as `base_weights`."""
    return {path.name: f"sha256:{sha256(path)}" for path in sorted(base.glob("*.safetensors"))}


def merge(model: PreTrainedModel, folder: Path, base: str) -> tuple[PreTrainedModel, str]:
    """The model with the adapter in its weights, and one line that says what was merged.

    model: the base in float32; it is changed. Raises KvattnError for an adapter that does not fit it.
    """
    config = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        there = next((path.name for path in sorted(folder.glob("adapter_model.*"))), "nothing")
        raise KvattnError(
            f"the adapter {folder} holds {there}, not {WEIGHTS}; pickled weights can run code, so save it anew"
        )
    if is_lfs_pointer(folder / WEIGHTS):
        raise KvattnError(f"the adapter {folder} holds a Git LFS pointer, not {WEIGHTS} itself; run: git lfs pull")
    try:
        merged = _merge(model, folder)
    except KvattnError:
        raise
    except Exception as error:
        lines = str(error).splitlines()
        said = next((line.strip() for line in lines if "size mismatch" in line), first_line(error))
        raise KvattnError(f"the adapter {folder} does not fit {base} ({said}); name its own base") from error
    targets = config.get("target_modules")
    where = targets if isinstance(targets, str) else ", ".join(sorted(targets or []))
    return merged, f"LoRA of rank {config.get('r')} on {where}, merged in float32"


def _merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    held = load_file(folder / WEIGHTS)
    with quiet():  # keys that are lacking or unused are compared below
        config = cast("LoraConfig", LoraConfig.from_pretrained(str(folder), local_files_only=True))
        modules = [f".{name}" for name, _ in model.named_modules()]
        for saved in config.modules_to_save or ():
            if not any(name.endswith(f".{saved}") for name in modules):
                raise _refusal(folder, f"it replaces the module {saved}, which the base lacks")
        tuned = PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu", local_files_only=True)
        used = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        if odd := sorted(held.keys() ^ used.keys()):
            state = "holds, and a merge would drop," if odd[0] in held else "lacks"
            raise _refusal(folder, f"it {state} {odd[0]}")
        if bad := [name for name, weight in held.items() if not torch.isfinite(weight).all()]:
            raise KvattnError(f"the adapter {folder} holds numbers that are not finite in {bad[0]}; train it anew")
        ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
        shared = ends[0].weight is ends[1].weight
        if shared and (tied := [key for key in sorted(held) if _is_embedding(key)]):
            raise _refusal(folder, f"it changes {tied[0]}, which the base shares between input and output")
        merged = cast("Any", tuned).merge_and_unload(safe_merge=True)
    return cast("PreTrainedModel", merged)


def _is_embedding(key: str) -> bool:
    return any(f".{name}." in key for name in ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out"))


def _refusal(folder: Path, what: str) -> KvattnError:
    return KvattnError(f"the adapter {folder} cannot be merged: {what}; merge it with peft and name the merged folder")
