// Package screen is text for people: on one line, harmless to a terminal, in their units.
package screen
