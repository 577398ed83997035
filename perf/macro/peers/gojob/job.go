// Package gojob is the job of an ad server for the two Go peers: the same as adcore's, without what adcore adds
// around it.
//
// Written as somebody would who knows Go's costs: headers are parsed once and remembered, targeting is an index of
// 64-bit masks, answers and records are appended to one buffer from pieces made at the start, and nothing is allocated
// on the way. Keyed BLAKE2b is used since it takes 0.3 µs where crypto/hmac with SHA-256 takes 0.5 µs (Go 1.19).
package gojob

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"log"
	"math/bits"
	"net/netip"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"
)

// What is remembered of each header; then it starts anew.
const rememberedMax = 8192

const (
	bufferBytes = 1 << 18
	flushEvery  = time.Second
)

type agent struct {
	device, os string
	bot        bool
}

// A list of words, and the same as JSON for the record.
type words struct {
	list []string
	json []byte
}

type query struct {
	placement string
	keywords  words
}

type campaign struct {
	ID        string
	Priority  string
	Weight    float64
	Goal      *struct{ Impressions int }
	Targeting map[string][]string
	Creatives []creative
}

type creative struct {
	ID            string
	PlacementSize [2]int `json:"placement_size"`
	Format        string
	Weight        float64
	ImageURL      string `json:"image_url"`
	Alt           string
}

// A creative: the answer around the id and the two tokens, and the part of the record that names it.
type ad struct {
	id              string
	weight          float64
	toClick, record []byte
}

// One facet: the campaigns that ask for a value, and those that do not ask.
type index struct {
	indifferent uint64
	naming      map[string]uint64
}

type placement struct {
	id                                                 string
	devices, countries, languages, keywords, forbidden index
	tiers                                              []uint64
	live                                               uint64
	ads                                                [64][]ad
	weights                                            [64]float64
	goals, counts                                      [64]int
}

// Job decides, signs and records. One lock covers it: with GOMAXPROCS=1 nobody ever waits for it.
type Job struct {
	mutex      sync.Mutex
	placements map[string]*placement
	host       []byte
	keyed      hash.Hash
	log        *bufio.Writer
	random     *bufio.Reader
	agents     map[string]agent
	languages  map[string]words
	queries    map[string]query
	record     []byte
	token      []byte
	digest     []byte
}

// FromEnvironment makes the job that JOB_INVENTORY, JOB_LOG and JOB_KEY describe, and flushes its log every second.
func FromEnvironment() *Job {
	text, err := os.ReadFile(os.Getenv("JOB_INVENTORY"))
	if err != nil {
		log.Fatal(err)
	}
	var inventory struct {
		Placements []struct{ ID string }
		Campaigns  []campaign
	}
	if err := json.Unmarshal(text, &inventory); err != nil {
		log.Fatal(err)
	}
	if len(inventory.Campaigns) > 64 {
		log.Fatal("a mask holds 64 campaigns")
	}
	file, err := os.OpenFile(os.Getenv("JOB_LOG"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		log.Fatal(err)
	}
	key, err := hex.DecodeString(os.Getenv("JOB_KEY"))
	if err != nil {
		log.Fatal(err)
	}
	keyed, err := blake2b.New(16, append([]byte("token"), key...))
	if err != nil {
		log.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	job := &Job{
		placements: map[string]*placement{},
		host:       marshal(name),
		keyed:      keyed,
		log:        bufio.NewWriterSize(file, bufferBytes),
		random:     bufio.NewReaderSize(rand.Reader, 4096),
		agents:     map[string]agent{},
		languages:  map[string]words{},
		queries:    map[string]query{},
	}
	for _, one := range inventory.Placements {
		job.placements[one.ID] = compile(one.ID, inventory.Campaigns)
	}
	go func() {
		for range time.Tick(flushEvery) {
			job.mutex.Lock()
			job.log.Flush()
			job.mutex.Unlock()
		}
	}()
	return job
}

// Answer appends the JSON of a decision to `body`; false means that there is none to give (204).
func (job *Job) Answer(body []byte, rawQuery, userAgent, acceptLanguage, country, ip string) ([]byte, bool) {
	job.mutex.Lock()
	defer job.mutex.Unlock()
	asked, known := job.queries[rawQuery]
	if !known {
		asked = parseQuery(strings.Clone(rawQuery))
		if len(job.queries) >= rememberedMax {
			job.queries = map[string]query{}
		}
		job.queries[strings.Clone(rawQuery)] = asked
	}
	who, known := job.agents[userAgent]
	if !known {
		who = parseUserAgent(userAgent)
		if len(job.agents) >= rememberedMax {
			job.agents = map[string]agent{}
		}
		job.agents[strings.Clone(userAgent)] = who
	}
	languages, known := job.languages[acceptLanguage]
	if !known {
		languages = parseAcceptLanguage(strings.Clone(acceptLanguage))
		if len(job.languages) >= rememberedMax {
			job.languages = map[string]words{}
		}
		job.languages[strings.Clone(acceptLanguage)] = languages
	}
	if !isCountry(country) {
		country = ""
	}
	here := job.placements[asked.placement]
	if here == nil {
		return body, false
	}
	var id [16]byte
	if _, err := job.random.Read(id[:]); err != nil {
		log.Fatal(err)
	}
	draw := float64(uint64(id[0])<<44|uint64(id[1])<<36|uint64(id[2])<<28|uint64(id[3])<<20|
		uint64(id[4])<<12|uint64(id[5])<<4|uint64(id[6])>>4) / (1 << 52)
	mask := here.eligible(who.device, country, languages.list, asked.keywords.list)
	number, chosen, chance := here.pick(mask, draw)
	if chosen == nil {
		return body, false
	}
	if !who.bot {
		here.count(number)
	}
	var hexID [32]byte
	hex.Encode(hexID[:], id[:])
	now := time.Now()
	job.write(now, hexID[:], here.id, who, country, ip, languages, asked.keywords, chosen, chance)

	token := append(job.token[:0], "k001~"...)
	token = strconv.AppendInt(token, now.Unix(), 16)
	token = append(token, '~')
	token = append(token, hexID[:]...)
	token = append(token, '~')
	token = append(token, here.id...)
	token = append(token, '~')
	token = append(token, chosen.id...)
	token = job.sign(token)
	job.token = token
	body = append(body, `{"impression_id":"`...)
	body = append(body, hexID[:]...)
	body = append(body, chosen.toClick...)
	body = append(body, token...)
	body = append(body, `","view_url":"/v1/view?t=`...)
	body = append(body, token...)
	return append(body, `"}`...), true
}

func (job *Job) sign(token []byte) []byte {
	job.keyed.Reset()
	job.keyed.Write(token)
	job.digest = job.keyed.Sum(job.digest[:0])
	token = append(token, '~')
	start := len(token)
	token = append(token, "00000000000000000000000000000000"...)
	hex.Encode(token[start:], job.digest)
	return token
}

// The fields of adcore's record of an impression, as a line of JSON.
func (job *Job) write(now time.Time, id []byte, placementID string, who agent, country, ip string,
	languages, keywords words, chosen *ad, chance float64) {
	utc := now.UTC()
	line := append(job.record[:0], `{"v":1,"type":"impression","time":`...)
	line = strconv.AppendFloat(line, float64(now.UnixMicro())/1e6, 'f', 6, 64)
	line = append(line, `,"id":"`...)
	line = append(line, id...)
	line = append(line, `","placement":"`...)
	line = append(line, placementID...)
	line = append(line, `","generation":"79ddfa69df9cf7a5","revision":1,"host":`...)
	line = append(line, job.host...)
	line = append(line, `,"device":"`...)
	line = append(line, who.device...)
	line = append(line, `","os":"`...)
	line = append(line, who.os...)
	line = append(line, `","country":"`...)
	line = append(line, country...)
	line = append(line, `","ivt":`...)
	line = strconv.AppendBool(line, who.bot)
	line = append(line, `,"ip":"`...)
	line = appendNetwork(line, ip)
	line = append(line, `","languages":`...)
	line = append(line, languages.json...)
	line = append(line, `,"keywords":`...)
	line = append(line, keywords.json...)
	line = append(line, `,"key_values":[],"hour":`...)
	line = strconv.AppendInt(line, int64(utc.Hour()), 10)
	line = append(line, `,"weekday":`...)
	line = strconv.AppendInt(line, int64(utc.Weekday()+6)%7, 10)
	line = append(line, `,"user":"","excluded":{}`...)
	line = append(line, chosen.record...)
	line = strconv.AppendFloat(line, chance, 'g', -1, 64)
	line = append(line, "}\n"...)
	job.record = line
	if _, err := job.log.Write(line); err != nil {
		log.Print(err)
	}
}

func (here *placement) eligible(device, country string, languages, keywords []string) uint64 {
	mask := here.live
	mask &= here.devices.indifferent | here.devices.naming[device]
	mask &= here.countries.indifferent | here.countries.naming[country]
	accepting := here.languages.indifferent
	for _, language := range languages {
		accepting |= here.languages.naming[language]
	}
	mask &= accepting
	accepting = here.keywords.indifferent
	for _, word := range keywords {
		accepting |= here.keywords.naming[word]
		mask &^= here.forbidden.naming[word]
	}
	return mask & accepting
}

// The first tier that has any; a campaign by weight, then one of its creatives.
func (here *placement) pick(mask uint64, draw float64) (int, *ad, float64) {
	for _, tier := range here.tiers {
		live := mask & tier
		if live == 0 {
			continue
		}
		total := 0.0
		for rest := live; rest != 0; rest &= rest - 1 {
			total += here.weights[bits.TrailingZeros64(rest)]
		}
		at := draw * total
		for rest := live; ; rest &= rest - 1 {
			number := bits.TrailingZeros64(rest)
			// What rounding leaves over falls to the last one.
			if at >= here.weights[number] && rest&(rest-1) != 0 {
				at -= here.weights[number]
				continue
			}
			ads := here.ads[number]
			for which := range ads {
				if at < ads[which].weight || which == len(ads)-1 {
					return number, &ads[which], ads[which].weight / total
				}
				at -= ads[which].weight
			}
		}
	}
	return 0, nil, 0
}

func (here *placement) count(number int) {
	here.counts[number]++
	if here.counts[number] == here.goals[number] {
		here.live &^= 1 << number
	}
}

func compile(id string, campaigns []campaign) *placement {
	here := &placement{
		id:        id,
		devices:   facet(campaigns, "devices"),
		countries: facet(campaigns, "countries"),
		languages: facet(campaigns, "languages"),
		keywords:  facet(campaigns, "keywords_any"),
		forbidden: facet(campaigns, "keywords_none"),
		live:      1<<len(campaigns) - 1,
	}
	for _, priority := range []string{"sponsorship", "standard", "house"} {
		var tier uint64
		for number, one := range campaigns {
			if one.Priority == priority {
				tier |= 1 << number
			}
		}
		here.tiers = append(here.tiers, tier)
	}
	for number, one := range campaigns {
		if one.Goal != nil {
			here.goals[number] = one.Goal.Impressions
		}
		here.weights[number] = one.Weight
		sum := 0.0
		for _, shown := range one.Creatives {
			sum += shown.Weight
		}
		for _, shown := range one.Creatives {
			static := marshal(struct {
				Placement string `json:"placement"`
				Campaign  string `json:"campaign"`
				Creative  any    `json:"creative"`
			}{id, one.ID, struct {
				ID       string `json:"id"`
				Format   string `json:"format"`
				Width    int    `json:"width"`
				Height   int    `json:"height"`
				ImageURL string `json:"image_url"`
				Alt      string `json:"alt"`
			}{shown.ID, shown.Format, shown.PlacementSize[0], shown.PlacementSize[1], shown.ImageURL, shown.Alt}})
			here.ads[number] = append(here.ads[number], ad{
				shown.ID,
				one.Weight * shown.Weight / sum,
				[]byte(`",` + string(bytes.Trim(static, "{}")) + `},"click_url":"/v1/click?t=`),
				[]byte(fmt.Sprintf(`,"campaign":%s,"creative":%s,"chance":`, marshal(one.ID), marshal(shown.ID))),
			})
		}
	}
	return here
}

func facet(campaigns []campaign, name string) index {
	made := index{naming: map[string]uint64{}}
	for number, one := range campaigns {
		if len(one.Targeting[name]) == 0 {
			made.indifferent |= 1 << number
		}
		for _, value := range one.Targeting[name] {
			made.naming[value] |= 1 << number
		}
	}
	return made
}

func parseQuery(raw string) query {
	asked := query{}
	for _, part := range strings.Split(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.QueryUnescape(value)
		if err != nil {
			continue
		}
		switch name {
		case "placement":
			asked.placement = value
		case "keywords":
			for _, word := range strings.Split(value, ",") {
				word = strings.ToLower(strings.TrimSpace(word))
				if word != "" && !contains(asked.keywords.list, word) {
					asked.keywords.list = append(asked.keywords.list, word)
				}
			}
		}
	}
	sort.Strings(asked.keywords.list)
	asked.keywords.json = marshalList(asked.keywords.list)
	return asked
}

// Best first, each followed by the wider ones that it belongs to.
func parseAcceptLanguage(text string) words {
	type ranged struct {
		tag     string
		quality float64
	}
	var ranges []ranged
	for _, part := range strings.Split(strings.ToLower(text), ",") {
		tag, value, given := strings.Cut(part, ";q=")
		quality := 1.0
		if given {
			quality, _ = strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
		ranges = append(ranges, ranged{strings.TrimSpace(tag), quality})
	}
	sort.SliceStable(ranges, func(a, b int) bool { return ranges[a].quality > ranges[b].quality })
	found := words{}
	for _, one := range ranges {
		for tag := one.tag; tag != "" && one.quality > 0; {
			if !contains(found.list, tag) {
				found.list = append(found.list, tag)
			}
			end := strings.LastIndexByte(tag, '-')
			if end < 0 {
				break
			}
			tag = tag[:end]
		}
	}
	found.json = marshalList(found.list)
	return found
}

var systems = []struct{ name, mark string }{
	{"other", "web0s"},
	{"windows", "windows"},
	{"ios", "iphone"}, {"ios", "ipad"}, {"ios", "ipod"},
	{"macos", "mac os x"},
	{"android", "android"},
	{"chromeos", "cros "},
	{"linux", "linux"},
}

func parseUserAgent(text string) agent {
	lower := strings.ToLower(text)
	has := func(marks ...string) bool {
		for _, mark := range marks {
			if strings.Contains(lower, mark) {
				return true
			}
		}
		return false
	}
	who := agent{os: "other", bot: has("bot", "crawl", "spider", "slurp", "facebookexternalhit")}
	for _, system := range systems {
		if has(system.mark) {
			who.os = system.name
			break
		}
	}
	switch {
	case has("smarttv", "smart-tv", "appletv"):
		who.device = "tv"
	case has("ipad") || has("tablet") && who.os != "windows":
		who.device = "tablet"
	case has("mobi", "iphone"):
		who.device = "mobile"
	case who.os == "android":
		who.device = "tablet"
	case who.os == "windows" || who.os == "macos" || who.os == "linux" || who.os == "chromeos":
		who.device = "desktop"
	default:
		who.device = "other"
	}
	return who
}

// The /24 or /48 of an address, nothing of none.
func appendNetwork(line []byte, ip string) []byte {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return line
	}
	kept := 24
	if address.Is6() {
		kept = 48
	}
	network, err := address.Prefix(kept)
	if err != nil {
		return line
	}
	return network.Addr().AppendTo(line)
}

func isCountry(text string) bool {
	return len(text) == 2 && 'A' <= text[0] && text[0] <= 'Z' && 'A' <= text[1] && text[1] <= 'Z'
}

func contains(list []string, wanted string) bool {
	for _, one := range list {
		if one == wanted {
			return true
		}
	}
	return false
}

func marshalList(list []string) []byte {
	if list == nil {
		return []byte("[]")
	}
	return marshal(list)
}

func marshal(value any) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	return text
}
