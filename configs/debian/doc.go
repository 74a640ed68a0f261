// Package debian holds what makes the Debian package, and its tests: build.sh builds
// it, control, copyright and the scripts named as dpkg names them go into it, and
// so does postern.toml, the configuration that a machine begins with.
// docs/install.md is for those who install it.
package debian
