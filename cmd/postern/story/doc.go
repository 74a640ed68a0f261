// Package story prints mail: a message with its recipients, holds and history, as 'postern
// trace' and 'postern queue' show it. It asks nothing: what it prints was read before.
package story
