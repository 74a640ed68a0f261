// Package config is the configuration file of one node: its keys with their defaults, what
// a reload may change of them, and the files, the key and the limits that they lead to.
package config
