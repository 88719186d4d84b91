"""The pages of a gateway beside inferences: index, health, metadata, metrics, statistics, its description."""

from typing import Any

from argosy.core.version import __version__
from argosy.serve import pages, triton, v2
from argosy.serve.access import check_policies
from argosy.serve.connection import Exchange
from argosy.serve.dataplane import DataPlane
from argosy.serve.endpoint import Endpoint, version_number
from argosy.serve.http import MODEL, VERSION, HttpFront, host_of


class GatewayFront(HttpFront):
    """The HTTP side of one gateway, whole."""

    plane: DataPlane

    def __init__(self, plane: DataPlane, *given: Any, **named: Any) -> None:
        """As `HttpFront`, but with a data plane of this process, of which more can be told."""
        super().__init__(plane, *given, **named)
        self._pages |= {
            "/": ("GET", self._index),
            "/metrics": ("GET", self._metrics),
            "/v2": ("GET", self._server_metadata),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/repository/index": ("POST", self._repository),
            "/v2/models/stats": ("GET", self._all_statistics),
            "/openapi.json": ("GET", self._openapi),
            "/docs": ("GET", self._docs),
        }
        self._paths |= {
            MODEL: ("GET", self._model),
            f"{MODEL}/ready": ("GET", self._model_ready),
            f"{MODEL}/config": ("GET", self._config),
            f"{MODEL}/stats": ("GET", self._statistics),
            VERSION: ("GET", self._model),
            f"{VERSION}/ready": ("GET", self._model_ready),
            f"{VERSION}/config": ("GET", self._config),
            f"{VERSION}/stats": ("GET", self._statistics),
        }
        check_policies((*self._pages, *self._paths))

    def _index(self, exchange: Exchange) -> None:
        endpoints = {}
        for name, endpoint in self._endpoints_of(exchange):
            entry: dict[str, Any] = {
                "version": endpoint.plan.serving_ref,
                "is_ready": endpoint.is_available,
                "predict": f"/predict/{name}",
                "infer": f"/v2/models/{name}/infer",
            }
            if endpoint.plan.canary:
                entry |= {"canary": endpoint.plan.canary_ref, "canary_share": endpoint.plan.share}
            endpoints[name] = entry
        exchange.respond_json(200, {"server": "argosy", "version": __version__, "endpoints": endpoints})

    def _endpoints_of(self, exchange: Exchange) -> list[tuple[str, Endpoint]]:
        caller = exchange.head.caller
        return [(name, endpoint) for name, endpoint in self.plane.endpoints.items() if caller.may(name)]

    def _openapi(self, exchange: Exchange) -> None:
        host = exchange.head.headers[b"host"].decode("latin-1")
        body = pages.openapi(
            [endpoint for _, endpoint in self._endpoints_of(exchange)],
            lambda endpoint: self.plane.signatures.get(endpoint.plan.serving),
            f"{self.scheme}://{host}",
            grpc=f"{host_of(host.encode('latin-1'))}:{self.grpc_port}" if self.grpc_port > 0 else "",
            needs_key=self.access.is_on,
        )
        exchange.respond(200, [body], "content-type: application/json\r\n")

    def _docs(self, exchange: Exchange) -> None:
        body, headers = pages.docs()
        exchange.respond(200, [body], headers)

    def _metrics(self, exchange: Exchange) -> None:
        body, kind = self.plane.counters.expose()
        exchange.respond(200, [body], f"content-type: {kind}\r\n")

    def _server_metadata(self, exchange: Exchange) -> None:
        exchange.respond_json(200, {"name": "argosy", "version": __version__, "extensions": list(triton.EXTENSIONS)})

    def _live(self, exchange: Exchange) -> None:
        exchange.respond_json(200, {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        held = [name for name, endpoint in self.plane.endpoints.items() if not endpoint.is_available]
        exchange.respond_json(503 if held else 200, {"ready": not held})

    def _repository(self, exchange: Exchange) -> None:
        exchange.respond_json(
            200,
            [
                {
                    "name": name,
                    "version": version_number(endpoint.plan.serving_ref),
                    "state": "READY" if endpoint.is_available else "UNAVAILABLE",
                    "reason": endpoint.plan.note,
                }
                for name, endpoint in self._endpoints_of(exchange)
            ],
        )

    def _model(self, name: str, number: str, exchange: Exchange) -> None:
        endpoint = self.plane.endpoint(name)
        signature = self.plane.signature(endpoint, number)
        exchange.respond_json(200, v2.metadata(endpoint.route.name, endpoint.numbers(), signature))

    def _config(self, name: str, number: str, exchange: Exchange) -> None:
        plane = self.plane
        endpoint = plane.endpoint(name)
        signature = plane.signature(endpoint, number)
        found = endpoint.digest_of(number) if number else (endpoint.plan.serving, "")
        sizes = [r.hello.max_batch for r in plane.pool.replicas.values() if found and r.hello.digest == found[0]]
        exchange.respond_json(200, triton.model_config(name, signature, max(sizes, default=0)))

    def _statistics(self, name: str, number: str, exchange: Exchange) -> None:
        endpoint = self.plane.endpoint(name)
        if number:
            self.plane.signature(endpoint, number)  # which says what is wrong with the number
        refs = [ref for ref in endpoint.refs() if not number or version_number(ref) == number]
        exchange.respond_json(200, triton.statistics(self.plane.counters, [(name, ref) for ref in refs]))

    def _all_statistics(self, exchange: Exchange) -> None:
        if "stats" in self.plane.endpoints:  # then this is the path of its metadata
            exchange.head.caller.check("stats")
            self._model("stats", "", exchange)
            return
        versions = [(name, ref) for name, endpoint in self._endpoints_of(exchange) for ref in endpoint.refs()]
        exchange.respond_json(200, triton.statistics(self.plane.counters, versions))

    def _model_ready(self, name: str, number: str, exchange: Exchange) -> None:
        endpoint = self.plane.endpoint(name)
        found = endpoint.digest_of(number) if number else (endpoint.plan.serving, "")
        if found is None:
            self.plane.signature(endpoint, number)  # which says that there is no such version
        is_ready = found is not None and self.plane.is_version_ready(endpoint, found[0])
        exchange.respond_json(200 if is_ready else 503, {"name": endpoint.route.name, "ready": is_ready})
