"""What a KV cache really holds, and whether it is what is claimed."""

from kvattn.engine.audit.auditor import audit
from kvattn.engine.audit.verdict import KINDS, Audit, Fault, Verdict

__all__ = ["KINDS", "Audit", "Fault", "Verdict", "audit"]
