"""Weights on the Hugging Face Hub: `hf://OWNER/REPOSITORY[@REVISION][/FILE]`."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_download, snapshot_download

from lensjax.errors import UsageError, one_line

# A revision is one word, or a reference such as refs/pr/1.
ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.+))?")
PREFERRED = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = ((".safetensors",), (".pth", ".pt", ".bin"))


@dataclass(frozen=True)
class HubFile:
    """A file of weights in the hub's cache, and where it comes from."""

    path: Path
    repository: str
    revision: str
    """Hash of the commit."""
    file: str


def fetch(address: str) -> HubFile:
    """Returns the weights at an address, from the hub's cache where they are there already.

    Without FILE it takes model.safetensors, else pytorch_model.bin, else the only file of weights.
    HF_HUB_OFFLINE, HF_HUB_CACHE, HF_TOKEN and HF_ENDPOINT count, as everywhere. Raises UsageError
    where there is no such repository, revision or file, no access, or no network.
    """
    parts = ADDRESS.fullmatch(address)
    if not parts:
        raise UsageError(f"--weights {address} must be hf://OWNER/REPOSITORY[@REVISION][/FILE]")
    repository, revision, file = parts.groups()
    try:
        file = _chosen(address, file, _listed(repository, revision))
        path = Path(hf_hub_download(repository, file, revision=revision))
    except UsageError:
        raise
    except Exception as error:  # those of its HTTP library, which is not the same in all versions
        raise UsageError(f"cannot fetch {address}: {_reason(error, repository)}") from error
    commit = path.parents[file.count("/")].name
    return HubFile(path, repository, commit, file)


def _listed(repository: str, revision: str | None) -> list[str]:
    """Returns the files in a repository, those in the cache where the hub does not answer."""
    try:
        info = HfApi().model_info(repository, revision=revision)
        return [sibling.rfilename for sibling in info.siblings or []]
    except Exception as error:
        try:
            cached = snapshot_download(repository, revision=revision, local_files_only=True)
        except errors.LocalEntryNotFoundError as missing:
            if not hasattr(missing, "snapshot_path"):  # of one of which a part is there
                raise error from None
            cached = missing.snapshot_path
        return [path.relative_to(cached).as_posix() for path in Path(cached).rglob("*")]


def _chosen(address: str, file: str | None, files: list[str]) -> str:
    """Returns the file of weights to read."""
    candidates = [name for name in files if name.endswith(sum(SUFFIXES, ()))]
    listed = ", ".join(sorted(candidates)[:8]) or "none"
    if file and file not in files:
        raise UsageError(f"{address}: no such file in the repository; of weights it holds {listed}")
    groups = [[name for name in candidates if name.endswith(suffixes)] for suffixes in SUFFIXES]
    found = [file] if file else [name for name in PREFERRED if name in files]
    found += [group[0] for group in groups if len(group) == 1]
    if not found:
        raise UsageError(
            f"{address}: name the file of weights, hf://OWNER/REPOSITORY/FILE; it holds {listed}"
        )
    return found[0]


def _reason(error: Exception, repository: str) -> str:
    """Returns in words why the hub gave nothing."""
    page = f"{constants.ENDPOINT}/{repository}"
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: f"it is gated: accept its terms at {page}, then `hf auth login` or "
        "set HF_TOKEN",
        errors.RepositoryNotFoundError: f"there is no {page}, or it is private: check the name, or "
        "set HF_TOKEN",
        errors.RevisionNotFoundError: f"{page} has no such revision",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, and it is not in the cache "
        f"({constants.HF_HUB_CACHE})",
        errors.HFValidationError: one_line(error, 200),
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    return (
        f"no answer from {constants.ENDPOINT}, and it is not in the cache "
        f"({constants.HF_HUB_CACHE}): {one_line(error, 120)}"
    )
