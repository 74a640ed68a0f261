package node

import "postern/cmd/postern/config"

// descriptors are those that this node may have open. It logs what was cut, once.
func (n *Node) descriptors() config.Descriptors {
	d := n.Config.Fit(config.OpenLimit())
	if cuts := n.Config.Cuts(d); cuts != n.cuts {
		if n.cuts = cuts; cuts != "" {
			n.Log.Warn("fewer connections than configured: the limit of open files is too low (ulimit -n, LimitNOFILE)",
				"cut", cuts, "connections", d.Connections, "deliveries", d.Deliveries, "files", d.Files, "database", d.Database)
		}
	}
	return d
}
