"""Edits guests in a process of its own."""


def launch() -> object:
    """The appliance."""
    import guestfs

    return guestfs.GuestFS(python_return_dict=True)
