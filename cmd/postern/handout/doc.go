// Package handout makes what a user's mail client needs: the settings, a profile for
// Apple's clients and a configuration for Mozilla's.
package handout
