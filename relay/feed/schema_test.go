package feed

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
)

// schema is a JSON Schema, as far as docs/events.schema.json uses it.
type schema struct {
	Type        string             `json:"type"`
	Required    []string           `json:"required"`
	Properties  map[string]*schema `json:"properties"`
	Additional  *bool              `json:"additionalProperties"`
	Items       *schema            `json:"items"`
	Enum        []string           `json:"enum"`
	Const       *bool              `json:"const"`
	Format      string             `json:"format"`
	Minimum     *float64           `json:"minimum"`
	MaxLength   *int               `json:"maxLength"`
	Schema      string             `json:"$schema"`
	ID          string             `json:"$id"`
	Title       string             `json:"title"`
	Description string             `json:"description"`
}

// faults says what of a value a schema does not allow.
func (s *schema) faults(where string, value any) (list []string) {
	fault := func(format string, args ...any) { list = append(list, where+": "+fmt.Sprintf(format, args...)) }
	switch v := value.(type) {
	case map[string]any:
		if s.Type != "object" {
			fault("an object")
		}
		for _, name := range s.Required {
			if _, has := v[name]; !has {
				fault("no %s", name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if s.Properties[name] != nil {
				list = append(list, s.Properties[name].faults(where+"."+name, v[name])...)
			} else if s.Additional != nil && !*s.Additional {
				fault("has %s", name)
			}
		}
	case []any:
		if s.Type != "array" || s.Items == nil {
			fault("an array")
			return list
		}
		for _, item := range v {
			list = append(list, s.Items.faults(where, item)...)
		}
	case string:
		_, noTime := time.Parse(time.RFC3339Nano, v)
		switch {
		case s.Enum != nil && !slices.Contains(s.Enum, v), s.Enum == nil && s.Type != "string", s.MaxLength != nil && len(v) > *s.MaxLength,
			s.Format == "uuid" && uuid.Validate(v) != nil, s.Format == "date-time" && noTime != nil:
			fault("%q", v)
		}
	case float64:
		if s.Type != "integer" || v != float64(int64(v)) || s.Minimum != nil && v < *s.Minimum {
			fault("%v", v)
		}
	case bool:
		if s.Const == nil || *s.Const != v {
			fault("%v", v)
		}
	default:
		fault("%v", v)
	}
	return list
}

func readSchema(t *testing.T) *schema {
	t.Helper()
	file, err := os.Open("../../docs/events.schema.json")
	must(t, err)
	defer file.Close()
	dec := json.NewDecoder(file)
	dec.DisallowUnknownFields() // a word that this test does not look at
	var s schema
	must(t, dec.Decode(&s))
	return &s
}

// fullHistory has a row of each result, with all that an attempt may have.
const fullHistory = `insert into history (message_id, n, at, epoch, result, local, domain, reply_code, reply_enhanced, reply_text, remote_mta, remote_addr, tls, upstream,
	node, scope, started_at, possible_duplicate, outcome_unknown)
	select id_of(1), 0, now() + i * interval '1 second', 1, r, 'bob', 'example.net', 450, '4.2.1', 'later', 'mx.example.net', '192.0.2.1', 'TLS1.3', 'mx', 'a', 'host', now(), true, r = 'unknown'
	from unnest($1::text[]) with ordinality u(r, i)`

// Each kind of event, with all that it may have, is as docs/events.schema.json says; and with nothing.
func TestSchema(t *testing.T) {
	t.Parallel()
	s := readSchema(t)
	db := newFeed(t)
	exec(t, db.Pool, `insert into app_user (name) values ('alice@example.com')`)
	exec(t, db.Pool, `insert into credential (user_id, kind, hash, label) select id, 'secret', '', 'printer' from app_user`)
	exec(t, db.Pool, insertMessage, 1, 1)
	exec(t, db.Pool, `update message set user_id = (select id from app_user), credential_id = (select id from credential), tags = '{invoice}', metadata = '{"order": 7}'`)
	exec(t, db.Pool, `insert into recipient (message_id, n, user_id, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
		select id_of(1), n, 1, now() + interval '1 day', 0, 0, 'x', 'bob' || n, 'example.net', '', '' from generate_series(0, 1) n`)
	exec(t, db.Pool, fullHistory, slices.Sorted(maps.Keys(ofResult)))
	exec(t, db.Pool, insertHistory, 2, 2, "delivered") // of a message that retention has deleted
	exec(t, db.Pool, `insert into audit (actor, action, object) values ('root', 'user add', 'alice@example.com')`)
	for _, k := range Kinds()[slices.Index(Kinds(), Refused):] {
		if k == Audit {
			continue
		}
		exec(t, db.Pool, `insert into event (kind, object, user_id, detail) select $1, 'x', id, '{"a": 1}' from app_user`, string(k))
	}
	events, _ := all(t, db, Cursor{}, Filter{})
	left := Kinds()
	seen := map[string]bool{}
	for _, e := range events {
		text, err := json.Marshal(e)
		must(t, err)
		var value map[string]any
		must(t, json.Unmarshal(text, &value))
		for _, fault := range s.faults(string(e.Kind), value) {
			t.Error(fault)
		}
		for name := range value {
			seen[name] = true
		}
		left = slices.DeleteFunc(left, func(k Kind) bool { return k == e.Kind })
		if e.Kind != Noticed && e.Message != nil && e.Message.Sender != "" && (e.User != "alice@example.com" || e.Message.Credential != "printer") {
			t.Errorf("of whom? %s", text)
		}
	}
	if len(left) > 0 {
		t.Errorf("there was no event of the kinds %q", left)
	}
	for name := range s.Properties {
		if !seen[name] {
			t.Errorf("no event had %s", name)
		}
	}
	var kinds []string
	for _, k := range Kinds() {
		kinds = append(kinds, string(k))
	}
	if !slices.Equal(kinds, s.Properties["kind"].Enum) {
		t.Errorf("the schema has the kinds %q", s.Properties["kind"].Enum)
	}
}

// The names in events outlive the user.
func TestNamesOutliveTheUser(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	exec(t, db.Pool, insertMessage, 1, 1)
	exec(t, db.Pool, `insert into former_user (user_id, name, credentials) values (1, 'alice@example.com', '{"1": "printer"}')`)
	events, _ := all(t, db, Cursor{}, Filter{})
	if len(events) != 1 || events[0].User != "alice@example.com" || events[0].Message.Credential != "printer" {
		t.Errorf("%+v", events)
	}
	if id, err := FormerUser(t.Context(), db.Pool, "alice@example.com"); err != nil || id != 1 {
		t.Errorf("%d, %v", id, err)
	}
	exec(t, db.Pool, `insert into app_user (name) values ('alice@example.com')`)
	if id, err := FormerUser(t.Context(), db.Pool, "alice@example.com"); !errors.Is(err, ErrNoUser) {
		t.Errorf("%d, %v", id, err)
	}
}
