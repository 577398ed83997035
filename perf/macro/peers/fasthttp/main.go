// The job behind fasthttp.
package main

import (
	"log"
	"net"
	"os"
	"unsafe"

	"adcoreperf/gojob"
	"github.com/valyala/fasthttp"
)

func main() {
	job := gojob.FromEnvironment()
	server := fasthttp.Server{
		NoDefaultServerHeader: true,
		Handler: func(context *fasthttp.RequestCtx) {
			if string(context.Path()) != "/v1/decision" {
				context.SetStatusCode(fasthttp.StatusNotFound)
				return
			}
			asked := &context.Request.Header
			// Appended to the body that the context keeps from the request before.
			body, filled := job.Answer(context.Response.SwapBody(nil)[:0], text(context.URI().QueryString()),
				text(asked.UserAgent()), text(asked.Peek("Accept-Language")), text(asked.Peek("X-Country")),
				text(asked.Peek("X-Real-Ip")))
			if !filled {
				context.SetStatusCode(fasthttp.StatusNoContent)
				return
			}
			context.Response.SwapBody(body)
			answer := &context.Response.Header
			answer.SetContentType("application/json")
			answer.Set("Cache-Control", "no-store")
			answer.Set("X-Content-Type-Options", "nosniff")
		},
	}
	listener, err := net.Listen("unix", os.Getenv("JOB_SOCKET"))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}

// The bytes as a string without copying them, as fasthttp advises: the job keeps only clones.
func text(data []byte) string { return *(*string)(unsafe.Pointer(&data)) }
