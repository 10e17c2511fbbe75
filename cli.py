from dnat.cli import main

main()
