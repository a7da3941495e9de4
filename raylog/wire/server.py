class WireServer:
    control_port = 0

    def __init__(self, *a, **k):
        pass

    def close(self):
        pass
