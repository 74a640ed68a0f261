// Package screen formats text for people: on one line, harmless to a terminal, in local time, in tables.
package screen
