"""What compose/local.py is made of: starting, controlling and surely ending private services.

``services`` is the face of it all. Below it stand ``postgres``, ``rabbitmq``, ``mariadb`` and the ``guard`` that ends
them; beside them ``programs`` finds what is run, on this machine (``installing``) or in a Debian tree (``trees``,
entered by ``userland``); below these ``processes``, ``waiting``, ``state`` and the rest, which know of no server.
Only the standard library is needed, so that a fresh checkout can start its services before anything is installed.
"""
