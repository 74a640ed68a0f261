// Package events prints the feed of what became of mail: pages of relay/feed, as text or as JSON. It
// changes nothing.
package events
