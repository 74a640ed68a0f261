// Package screen formats what commands print: text and tables for people, on one line,
// harmless to a terminal and in local time, and JSON for programs.
package screen
