// Package man makes manual pages of commands, from their help.
package man
