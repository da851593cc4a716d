"""Everything that needs torch: backbones from weights and distillation. Never imported by the daemon."""
