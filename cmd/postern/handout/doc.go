// Package handout is what the user of a mail client is given: the settings, a profile for
// Apple's clients and a configuration for Mozilla's.
package handout
