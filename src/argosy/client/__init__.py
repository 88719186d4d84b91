"""Asking a gateway for predictions from Python: `argosy.Client` and `argosy.AsyncClient`."""

from argosy.client.aio import AsyncClient
from argosy.client.blocking import Client
from argosy.client.messages import Metadata, Model, Prediction

__all__ = ["AsyncClient", "Client", "Metadata", "Model", "Prediction"]
