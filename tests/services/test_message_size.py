"""How much Serve's gRPC proxy takes from whoever comes, before anybody asks for a token."""

import os
import subprocess
import sys

from services.settings import RAY_ENVIRONMENT

SEND = """
import asyncio

import grpc
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceServicer, FerretServiceStub, add_FerretServiceServicer_to_server
from ray.serve._private.constants import DEFAULT_GRPC_SERVER_OPTIONS


class Service(FerretServiceServicer):
    async def UploadImage(self, request, context):
        return pb.UploadImageResponse()


async def send():
    server = grpc.aio.server(options=DEFAULT_GRPC_SERVER_OPTIONS)
    add_FerretServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}", [("grpc.max_send_message_length", -1)]) as channel:
        for mebibytes in (63, 65):
            try:
                await FerretServiceStub(channel).UploadImage(pb.UploadImageRequest(image_bytes=bytes(mebibytes * 2**20)))
                print("OK")
            except grpc.aio.AioRpcError as error:
                print(error.code().name)
    await server.stop(0)


asyncio.run(send())
"""


def test_larger_messages_are_refused():
    """By what Serve makes of the environment, which it reads once."""
    sent = subprocess.run([sys.executable, "-c", SEND], env=os.environ | RAY_ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert sent.stdout.split() == ["OK", "RESOURCE_EXHAUSTED"]
