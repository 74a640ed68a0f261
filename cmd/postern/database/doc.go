// Package database is the way to PostgreSQL for a node and for commands: connections and
// pools, the private server, and what a database must be like before anybody relies on it.
package database
