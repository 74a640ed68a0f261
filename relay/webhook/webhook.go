package webhook

import (
	"bytes"
	"embed"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/relay/feed"
	"postern/relay/seal"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

// Bounds of webhooks.
const (
	Most        = 100    // in all
	MostOfUser  = 10     // of one user
	MostRetries = 10_000 // events that wait for another try: then no new ones are read
	KeptTries   = 100    // in the log of each
	Concurrency = 8      // requests at the same time, unless an admin sets another number

	MostConcurrency = 64
	MostPerMinute   = 60_000
)

// Test is the kind of the event that an admin sends to try an endpoint. It is not in the feed.
const Test feed.Kind = "webhook.test"

// State is what happens to a webhook.
type State string

// The states: docs/webhooks.md.
const (
	Active   State = "active"
	Paused   State = "paused"
	Disabled State = "disabled"
)

// Limits are what an endpoint is sent at most.
type Limits struct {
	Concurrency int `json:"concurrency"` // requests at the same time, from 1 to MostConcurrency
	PerMinute   int `json:"per_minute"`  // requests, retries among them, up to MostPerMinute; 0: no limit
}

func (l Limits) check() error {
	if l.Concurrency < 1 || l.Concurrency > MostConcurrency {
		return refusal.Invalid("the number of concurrent requests must be from 1 to %d", MostConcurrency)
	}
	if l.PerMinute < 0 || l.PerMinute > MostPerMinute {
		return refusal.Invalid("the number of requests per minute must be from 1 to %d, or 0 for no limit", MostPerMinute)
	}
	return nil
}

// Webhook is a webhook as lists show it.
type Webhook struct {
	ID     int64       `json:"-"`
	Name   string      `json:"name"`
	URL    string      `json:"url"`
	User   string      `json:"user,omitempty"` // whose events it gets; "": all
	Kinds  []feed.Kind `json:"kinds"`          // empty: all
	State  State       `json:"state"`
	Reason string      `json:"reason,omitempty"` // why it is disabled
	Limits
	Failures  int        `json:"failures"` // tries in a row
	GivenUp   int64      `json:"given_up"` // events
	CreatedAt time.Time  `json:"created_at"`
	WaitUntil *time.Time `json:"wait_until,omitempty"` // nothing is sent before
	GoneUntil *time.Time `json:"gone_until,omitempty"` // retention has deleted unread events that happened before
	GoneAt    *time.Time `json:"gone_at,omitempty"`    // when that was noticed
	OldUntil  *time.Time `json:"old_secret_until,omitempty"`
	Waiting   int        `json:"waiting"`                   // events that wait for another try
	Behind    float64    `json:"behind_seconds"`            // the age of the oldest event that waits, or for which the feed is held back
	FeedHeld  *time.Time `json:"feed_held_since,omitempty"` // since when an open transaction has held back the feed, for all webhooks
}

// Try is a request as the log has it.
type Try struct {
	EventID uuid.UUID `json:"event_id"`
	Kind    feed.Kind `json:"kind"`
	At      time.Time `json:"at"`
	Status  int       `json:"status"` // 0: there was no answer
	TookMS  int       `json:"took_ms"`
	Error   string    `json:"error,omitempty"` // empty: the event was taken
	Answer  string    `json:"answer,omitempty"`
}

// place names the webhook for which secrets are sealed: they open for no other.
func place(name string) string { return strings.Join([]string{"webhook", name}, "\x00") }

// Sealed is the column of secrets.
func Sealed() seal.Column {
	return seal.Column{
		Read:  `select array['webhook', name], secret from webhook where $1::bytea is null or substr(secret, 1, length($1)) <> $1`,
		Write: `update webhook set secret = $3 where name = ($1::text[])[2] and secret = $2`,
	}
}

// open gives back the secrets of a webhook: the former one behind the current one, if both sign.
func open(s *seal.Sealer, name string, sealed []byte, both bool) (secrets []Secret, err error) {
	plain, err := s.Open(place(name), sealed)
	if err != nil {
		return nil, err
	}
	for part := range slices.Chunk(plain, secretSize) {
		secrets = append(secrets, Secret(part))
	}
	if !both {
		secrets = secrets[:1]
	}
	return secrets, nil
}

// upstreamName is how Postern's own replies name an upstream, and where it is.
var upstreamName = regexp.MustCompile(`\bupstream "?[^\s:"]+"?( at \S+:\d+)?`)

// encode is the body of a request: the event's JSON. A user does not see the relay's upstreams, nodes and admins.
func encode(e *feed.Event, ofUser bool) (string, error) {
	shown := *e
	if ofUser {
		if shown.Upstream != "mx" {
			shown.Upstream, shown.Remote = "", nil
		}
		shown.Node = ""
		if e.Reply != nil {
			reply := *e.Reply
			reply.Text = upstreamName.ReplaceAllString(reply.Text, "the next server")
			if reply.Code == 0 && strings.HasPrefix(reply.Text, "by ") { // as relay/queue/desk writes it
				reply.Text = "by an administrator"
			}
			shown.Reply = &reply
		}
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	err := enc.Encode(&shown)
	return strings.TrimSuffix(text.String(), "\n"), err
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// checkKinds refuses kinds that a webhook cannot get.
func checkKinds(kinds []feed.Kind, ofUser bool) error {
	users := feed.Kinds()
	users = users[:slices.Index(users, feed.Audit)]
	for _, k := range kinds {
		switch {
		case !slices.Contains(feed.Kinds(), k):
			return refusal.Invalid("there is no kind %q of events", k)
		case ofUser && !slices.Contains(users, k):
			return refusal.Invalid("no user's webhook gets events of the kind %s: leave it out, or use --all", k)
		}
	}
	return nil
}
