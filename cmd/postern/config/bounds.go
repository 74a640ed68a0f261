package config

import (
	"fmt"
	"reflect"
	"strconv"
	"time"
)

// checkBounds holds the numbers, sizes and spans of a section to the bounds in their tags.
func checkBounds(prefix string, section reflect.Value) error {
	for field, value := range section.Fields() {
		key := prefix + field.Tag.Get("toml")
		if value.Kind() == reflect.Struct {
			if err := checkBounds(key+".", value); err != nil {
				return err
			}
		}
		if field.Tag.Get("above") == "0" && value.Int() <= 0 {
			return fmt.Errorf("%s must be more than 0", key)
		}
		if least := field.Tag.Get("least"); least != "" && value.Int() < number(least, value.Type()) {
			return fmt.Errorf("%s must be at least %s", key, least)
		}
	}
	return nil
}

// number reads a bound as a value of this type is written.
func number(text string, of reflect.Type) int64 {
	if of == reflect.TypeFor[Duration]() {
		d, err := parseDuration(text)
		if err != nil {
			panic("config: a tag has " + err.Error())
		}
		return int64(time.Duration(d))
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic("config: a tag has " + err.Error())
	}
	return n
}
