"""The edge of the HTTP process: what every request passes before anything is done for it, and every answer before it leaves."""
