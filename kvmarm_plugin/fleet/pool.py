# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pools: hosts that exchange guests freely, and the baseline that all of them give
(/etc/kvmarm/pool.yaml, --pool).

`baseline` makes a pool. Its baseline is itself the profile of a host: one that gives what every
member gives and nothing more. So resolving in a pool is resolving for that host, and the same
domain gets the same target on every member; `confirm` then asks whether the member at hand keeps to
it.
"""

from __future__ import annotations

from .. import __version__
from ..basics import shape
from ..basics.errors import KvmarmError
from ..basics.shape import Incomplete, Misshapen
from ..basics.untrusted import shown
from ..basics.value import Value
from ..basics.yamltext import load
from ..domain.pins import find_cluster
from ..domain.record import Origin
from ..domain.xml import is_markup
from ..judge.by_profile import ProfileOffer, check, counted, given
from ..judge.finding import Finding
from ..judge.offer import Offer
from ..judge.pinning import place
from ..judge.verdict import gic_refused, judge, worst_first
from ..judge.wording import in_short, texts
from ..model.profile import Cluster, HostProfile
from ..model.profile_json import ProfileError, decode, digest, encode
from ..model.profile_shape import NAME
from ..resolve.address_space import guest_ipa_bits
from ..resolve.resolver import Resolver
from ..resolve.wish import ResolveError, Wish
from .common_ground import targets
from .obstacles import blocking, machines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ..domain.pins import Identified
    from ..model.policy import Policy
    from ..model.target import Pinning, Target

DEFAULT_PATH = "/etc/kvmarm/pool.yaml"
SCHEMA_STEM = "urn:kvmarm-plugin:pool:"
SCHEMA = SCHEMA_STEM + "1"
SIZE_LIMIT = 2 << 20  # bytes; a member takes a hundred, the baseline some ten thousand

_SHAPE = shape.members(
    {
        "schema": shape.text(NAME),
        "name": shape.text(NAME, r".*\S.*", "a name"),
        "members": shape.table(
            shape.text(NAME),
            shape.text(71, "sha256:[0-9a-f]{64}", "the digest of a profile"),
            1 << 15,
        ),
        "baseline": lambda value, _: value,  # a profile
    }
)

ANEW = "probe all members and make the baseline anew: kvmarm baseline PROFILE… -o FILE"
_AGAIN = "make it anew with: kvmarm baseline PROFILE… -o FILE"
_HEAD = """\
# A pool of hosts that exchange KVM guests, and what all of them give: made by kvmarm baseline. Do
# not edit: make it anew when a host comes, goes or changes. Install it on every member as {path}.
"""


class PoolError(KvmarmError):
    """The document is not a pool that this program can use."""


class Pool(Value):
    """Hosts and what they have in common.

    Attributes:
        name: for people.
        members: name of each host → digest of the profile that it had when the pool was made.
        baseline: what every member gives, as the profile of a host.
    """

    name: str
    members: dict[str, str]
    baseline: HostProfile

    @property
    def origin(self) -> Origin:
        """What the records of its guests say of where they were made: the same on every member."""
        return Origin(self.name, digest(self.baseline), f"kvmarm {__version__}")


def loads(text: str, name: str = "pool") -> Pool:
    """A pool from its YAML.

    Args:
        name: of the file, for messages.

    Raises:
        PoolError: not YAML, not a pool, or one of a newer schema.
    """
    document = load(text, name, PoolError, _AGAIN, SIZE_LIMIT)
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str) or not schema.startswith(SCHEMA_STEM):
        raise PoolError(f"{name} is not a pool", _AGAIN)
    if schema != SCHEMA:
        raise PoolError(
            f"{name} has schema {shown(schema, 60)}; this kvmarm knows {SCHEMA}",
            "upgrade kvmarm on this host",
        )
    try:
        return _decode(document, f"the baseline in {name}")
    except Misshapen as error:
        raise PoolError(
            f"{name} {'is incomplete' if isinstance(error, Incomplete) else 'is broken'}: {error}",
            _AGAIN,
        ) from None
    except ProfileError as error:
        raise PoolError(error.message, _AGAIN) from None


def dumps(pool: Pool) -> str:
    """The pool as YAML: the same pool gives the same text.

    Raises:
        PoolError: `loads` would not read it: its name, which comes from the command line, is no
            line of text.
    """
    import yaml

    document = {
        "schema": SCHEMA,
        "name": pool.name,
        "members": pool.members,
        "baseline": _plain(encode(pool.baseline)),
    }
    try:
        _decode(document, "its baseline")
    except Misshapen as error:
        raise PoolError(f"no such pool can be written: {error}", "give it another --name") from None
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    body = yaml.dump(
        document,
        Dumper=dumper,
        sort_keys=False,
        width=120,
        allow_unicode=True,
        default_flow_style=None,
    )
    return _HEAD.format(path=DEFAULT_PATH) + str(body)


def is_pool(document: bytes) -> bool:
    """Whether a document looks like a pool, and not like a domain; for commands that take both."""
    return SCHEMA_STEM.encode() in document and not is_markup(document)


def resolver(
    pool: Pool,
    policy: Policy,
    host: str,
    clusters: tuple[Pinning, ...],
    ask: Callable[[Target], Offer],
    advise: Callable[[str], None] = lambda _: None,
) -> Resolver:
    """Resolves domains of a member: for the pool's baseline, so that all members make the same of
    them.

    Args:
        host: the member's name.
        clusters: of the member. On a big.LITTLE host guests are pinned, and every board may count
            in its own way.
        ask: what the member gives to a guest of a target.
        advise: as for `Resolver`.

    A domain that the member would not run like the others raises ResolveError: it has drifted out
    of its pool.
    """

    def confirmed(target: Target, wish: Wish) -> None:
        with ask(target) as offer:
            findings = confirm(pool, target, offer)
            if findings:
                raise _drifted(pool, host, findings)
            _check_layout(pool, wish, offer.ipa_bits, host)

    return Resolver(pool.baseline, policy, pool.origin, confirmed, clusters, advise)


def confirm(pool: Pool, target: Target, offer: Offer) -> list[Finding]:
    """Why a guest of the pool would not be one on a host; empty if it would: the host takes the
    target, and what the guest gets when it is started there is taken by every other member.

    Args:
        offer: of the host, made for this target.
    """
    findings = blocking(judge(target, offer))
    if findings:
        return findings
    local = given(target, offer)
    return [
        Finding(finding.kind, **finding.values, pool=pool.name)
        for finding in blocking(check(local, pool.baseline, cpus=()))
    ]


def check_member(pool: Pool, host: HostProfile) -> list[Finding]:
    """Why a host would not be a member like the others, whatever guest of the pool is asked for,
    the most blocking first; empty if it would.
    """
    found: dict[Finding, None] = {}  # a set in order
    for cluster in pool.baseline.clusters:
        for target in targets(pool.baseline.replace(clusters=(cluster,))):
            for finding in confirm(
                pool, target, ProfileOffer(target, host, counterpart(cluster, host))
            ):
                found[finding] = None
            # Guests of hosts of one kind have no pins, and roam here.
            if len(host.clusters) > len(pool.baseline.clusters):
                found.update(dict.fromkeys(place(target, counted(host))[1]))
    # What no target of an open guest asks for: those that a user has written, and much memory.
    base = pool.baseline
    missing = tuple(machine for machine in machines(base) if machine not in machines(host))
    gics = tuple(version for version in base.gic_versions if version not in host.gic_versions)
    unknown = host.unknown  # `found` says so
    of_some = {
        "machine-unknown": missing
        and "qemu" not in unknown
        and Finding("machines-unknown", machines=missing, host=host.name),
        "gic-refused": gics
        and "gic_versions" not in unknown
        and gic_refused(gics[0], host.gic_versions, host.name),
        "addresses-too-few": host.ipa_bits < base.ipa_bits
        and "ipa_bits" not in unknown
        and Finding(
            "addresses-too-few", recorded=base.ipa_bits, local=host.ipa_bits, host=host.name
        ),
    }
    told = {finding.kind for finding in found}
    new = (each for kind, each in of_some.items() if each and not told & {kind, each.kind})
    return worst_first([*found, *new])


def counterpart(cluster: Identified | None, host: HostProfile) -> Cluster | None:
    """The cluster of a host that stands for one of the baseline: the one that a guest of it belongs
    on, else the first of its MIDR_EL1, else the first.
    """
    own = find_cluster(cluster, host.clusters) if cluster else None
    of_midr = [each for each in host.clusters if cluster and each.midr == cluster.midr]
    return own or (*of_midr, *host.clusters, None)[0]


def _check_layout(pool: Pool, wish: Wish, ipa_bits: int, host: str) -> None:
    """Raises ResolveError if QEMU would lay the addresses of such a guest out otherwise here than
    on the pool's smallest host.
    """
    qemu = pool.baseline.qemu.release if pool.baseline.qemu else (0, 0)
    there, here = (
        guest_ipa_bits(wish.memory, limit, f"on host {host}", qemu, wish.room)
        for limit in (pool.baseline.ipa_bits, ipa_bits)
    )
    if there != here:
        raise ResolveError(
            f"a guest with this much memory would have {here}-bit addresses on {host}, and"
            f" {there}-bit ones in pool {pool.name}",
            f"the pool's smallest host has {pool.baseline.ipa_bits} bits: give the guest less"
            " memory, or leave that host out",
        )


def _drifted(pool: Pool, host: str, findings: list[Finding]) -> KvmarmError:
    # Remedies are for a guest that comes from a host, and here is none.
    said = in_short(
        findings, recorded=f"pool {shown(pool.name, 60)}", local=shown(host, 60), helps=False
    )
    if host not in pool.members:
        how = "does not fit into"
    else:
        how = "has drifted out of" if has_drifted(findings) else "is not ready for"
    return ResolveError(f"{host} {how} pool {pool.name}: {'; '.join(said)}", what_helps(findings))


def what_helps(findings: list[Finding]) -> str:
    """What to do about a host that would not be a member like the others.

    Args:
        findings: of `check_member` or `confirm`; at least one.
    """
    return ANEW if has_drifted(findings) else texts(findings[0])["remedy"]


def has_drifted(findings: list[Finding]) -> bool:
    """Whether a member is not what it was when the pool was made. Where only libkvmarm-level is in
    the way, it is, and not ready yet.

    Args:
        findings: as for `what_helps`.
    """
    return any(finding.group != "library" for finding in findings)


def _decode(document: Any, baseline: str) -> Pool:
    """A pool from its document; `baseline` is what to call the profile in it. Raises Misshapen and
    ProfileError.
    """
    fields = _SHAPE(document, "")
    return Pool(fields["name"], fields["members"], decode(fields["baseline"], baseline))


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that a safe YAML dumper writes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
