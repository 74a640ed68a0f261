// Package config reads the configuration file of one node: its keys with their defaults and
// bounds, which of them a reload may change, and the files, the key and the limits they name.
package config
