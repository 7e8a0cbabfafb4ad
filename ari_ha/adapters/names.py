"""DNS by dnspython, through the resolvers of the host (/etc/resolv.conf)."""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.core.machine import Done, Outcome, Refused, Unreachable
from ari_ha.core.ports.names import Found, LookUp, Service

RECORDS_MAX = 32


class Names:
    """Performs `LookUp`."""

    def __init__(self, servers: Sequence[str] = (), port: int = 53) -> None:
        """``servers`` and ``port`` in place of the host's own (tests)."""
        self._servers = list(servers)
        self._port = port

    async def perform(self, effect: LookUp) -> Outcome:
        """One question; the resolver's own retries fit into the effect's limit."""
        # here, not above: an edge whose carriers have addresses needs no DNS, nor the library
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        try:
            resolver = dns.asyncresolver.Resolver(configure=not self._servers)
            if self._servers:
                resolver.nameservers, resolver.port = self._servers, self._port
            resolver.lifetime = effect.limit_s * 0.9
            answer = await resolver.resolve(effect.name, effect.kind, search=False)
        except dns.resolver.NXDOMAIN:
            return Refused(f"{effect.name} does not exist")
        except dns.resolver.NoAnswer:
            return Refused(f"{effect.name} has no {effect.kind} record")
        except (dns.resolver.NoNameservers, dns.exception.Timeout, dns.resolver.NoResolverConfiguration):
            return Unreachable(f"no name server answers for {effect.name}")
        except dns.exception.DNSException as error:
            return Refused(f"{effect.name}: {error}")
        except OSError as error:
            return Unreachable(str(error))
        ttl_s = float(answer.chaining_result.minimum_ttl)
        records = list(answer)[:RECORDS_MAX]
        if effect.kind == "A":
            return Done(Found(ttl_s, addresses=tuple(sorted(record.address for record in records))))
        services = (
            Service(record.priority, record.weight, record.port, record.target.to_text().rstrip("."))
            for record in records
        )
        return Done(Found(ttl_s, services=tuple(services)))
