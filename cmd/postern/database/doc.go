// Package database connects nodes and commands to PostgreSQL: connections and pools, the
// private server, and what a database must guarantee before a node relies on it.
package database
