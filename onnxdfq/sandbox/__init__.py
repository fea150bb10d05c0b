"""Tasks in a process of their own, with limits: whatever a stranger's file does there, this process goes on.

`serve` is the program of a server that starts once, imports what tasks need, and forks for each of them; `Call` asks it
for one. What comes back is JSON: nothing that a task says can run code here.
"""

from onnxdfq.sandbox.call import Call, Ended, TaskFault
from onnxdfq.sandbox.limits import Limits
from onnxdfq.sandbox.server import Stage, serve

__all__ = ["Call", "Ended", "Limits", "Stage", "TaskFault", "serve"]
