"""Three echoes of a text, for which compression must have been agreed on."""

import sys

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.sync.client import connect

url, text = sys.argv[1:]
with connect(url) as socket:
    assert any(isinstance(extension, PerMessageDeflate) for extension in socket.protocol.extensions)
    for _ in range(3):
        socket.send(text)
        assert socket.recv() == text
