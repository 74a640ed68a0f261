// Package secret reads passwords, other secrets and keys from where a command's flags say:
// the terminal, a pipe, or a file that not everybody may read. It never takes them from the
// command line, where every user of the machine could read them.
package secret
