package main

// descriptors are those that this node may have open. It logs what was cut, once.
func (n *node) descriptors() descriptors {
	d := n.cfg.fit(openLimit())
	if cuts := n.cfg.cuts(d); cuts != n.cuts {
		if n.cuts = cuts; cuts != "" {
			n.log.Warn("fewer connections than configured: the limit of open files is too low (ulimit -n, LimitNOFILE)",
				"cut", cuts, "connections", d.connections, "deliveries", d.deliveries, "files", d.files, "database", d.database)
		}
	}
	return d
}
