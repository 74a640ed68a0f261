// Package demo tries the whole relay on one machine: a private database, a user, a
// capture server as the upstream, and one message that goes the whole way.
package demo
