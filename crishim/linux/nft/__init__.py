"""nf_tables over netlink: expressions, messages, transactions; no `nft` program."""
