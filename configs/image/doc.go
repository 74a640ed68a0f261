// Package image holds the tests of Dockerfile and docker-compose.yml. There need be no
// container engine: the engines' own parsers read the files (internal/tools/containers),
// and the tests do on a machine of their own what an engine does by them.
package image
