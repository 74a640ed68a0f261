package check

import (
	"context"
	"fmt"
	"strings"
)

// statementsLogged looks whether the server's log gets the values of statements. Of those
// that it logs all or some, log_parameter_max_length = 0 keeps the values out.
func (in *inspection) statementsLogged(ctx context.Context) error {
	var settings map[string]string
	err := in.conn.QueryRow(ctx, `
		select json_object_agg(name, setting) from pg_settings where name in ('log_statement', 'log_min_duration_statement',
			'log_min_duration_sample', 'log_transaction_sample_rate', 'log_parameter_max_length', 'log_parameter_max_length_on_error')`).Scan(&settings)
	if err != nil {
		return err
	}
	if which := loggedValues(settings); which != "" {
		in.r.add("db.logs-values", "log", "%s", which)
	}
	return nil
}

// loggedValues says by which settings values are logged, "" for none.
func loggedValues(settings map[string]string) string {
	var which []string
	for _, logs := range []struct{ name, off string }{
		{"log_min_duration_statement", "-1"}, {"log_min_duration_sample", "-1"}, {"log_transaction_sample_rate", "0"},
	} {
		if settings[logs.name] != logs.off {
			which = append(which, logs.name+" is "+settings[logs.name])
		}
	}
	if all := settings["log_statement"]; all == "all" || all == "mod" {
		which = append(which, "log_statement is "+all)
	}
	if len(which) > 0 && settings["log_parameter_max_length"] != "0" {
		return fmt.Sprintf("%s, and log_parameter_max_length is %s", strings.Join(which, ", "), settings["log_parameter_max_length"])
	}
	if most := settings["log_parameter_max_length_on_error"]; most != "0" {
		return "log_parameter_max_length_on_error is " + most
	}
	return ""
}
