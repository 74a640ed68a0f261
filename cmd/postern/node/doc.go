// Package node is one running relay: it builds the parts, starts them in order, reloads
// the configuration, drains within its time, and talks to the service manager.
package node
