package audit

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// numbered finds a user that the queue knew by number only.
var numbered = regexp.MustCompile(`(^|, )user ([0-9]{1,18})($|,)`)

// Users are those whose numbers, without a name, stand in the objects of a list.
func Users(list []Entry) (ids []int64) {
	for _, d := range list {
		if m := numbered.FindStringSubmatch(d.Object); m != nil {
			id, _ := strconv.ParseInt(m[2], 10, 64)
			ids = append(ids, id)
		}
	}
	return ids
}

// ObjectText is the object for people: the number of a user has the name in who beside it.
func (e Entry) ObjectText(who map[int64]string) string {
	return numbered.ReplaceAllStringFunc(e.Object, func(s string) string {
		m := numbered.FindStringSubmatch(s)
		id, _ := strconv.ParseInt(m[2], 10, 64)
		if who[id] == "" {
			return s
		}
		return m[1] + "user " + m[2] + " (" + who[id] + ")" + m[3]
	})
}

// DetailText is the detail for people, "key value, key value", with limits as they are set.
func (e Entry) DetailText() string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(e.Detail, &fields) != nil {
		return string(e.Detail)
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		var text string
		if key == "limits" && limitsText(fields[key], &text) {
			parts = append(parts, text)
			continue
		}
		if json.Unmarshal(fields[key], &text) != nil {
			var b bytes.Buffer
			_ = json.Compact(&b, fields[key])
			text = b.String()
		}
		if text != "" && text != "[]" && text != "null" {
			parts = append(parts, strings.ReplaceAll(key, "_", " ")+" "+text)
		}
	}
	return strings.Join(parts, ", ")
}

// limitsText is limits as the audit has them, quota.Limit's String, by the names of their flags.
func limitsText(list json.RawMessage, text *string) bool {
	var words []string
	if json.Unmarshal(list, &words) != nil {
		return false
	}
	*text = strings.ReplaceAll(strings.Join(words, ", "), "_", "-")
	return true
}
