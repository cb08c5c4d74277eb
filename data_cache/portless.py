"""Dask's scheduler and worker without their web servers: nobody asked for a port to be opened."""

from __future__ import annotations

from typing import Any

from distributed import Scheduler, Worker
from distributed.http.routing import RoutingApplication


class PortlessScheduler(Scheduler):
    """A scheduler that serves no pages."""

    def start_http_server(self, routes: Any, *_address: Any, **_options: Any) -> None:
        """Keep the routes, which closing asks for, and listen nowhere."""
        self.http_application = RoutingApplication(routes)


class PortlessWorker(Worker):
    """A worker that serves no pages."""

    def start_http_server(self, routes: Any, *_address: Any, **_options: Any) -> None:
        """Keep the routes, which closing asks for, and listen nowhere."""
        self.http_application = RoutingApplication(routes)
