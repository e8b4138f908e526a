"""The shell around the core: everything of the scheduler that touches the world.

    executors ──> executor_service ─┐                        ┌─> executor_session ──> executors
                                    ├─ events ─> core_loop ──┤   (plans leave first)
    frontends ──> frontend_service ─┘            (one writer)└─> frontend_session ──> frontends

Servicers only turn messages into events and post them. One task, `CoreLoop`, feeds the core and hands the
effects to the sessions through `effect_router`. Encoding happens in each session's own writer task, so a
slow peer delays nobody else.
"""
