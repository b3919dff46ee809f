# Sidekiq on Redis, concurrency 10, in this process. Usage: ruby sidekiq.rb drain|enqueue
require "sidekiq"
require "sidekiq/cli"

COUNT = Integer(ENV.fetch("BENCH_COUNT", "100000"))
REDIS = { url: "redis://127.0.0.1:#{ENV.fetch('BENCH_REDIS_PORT')}/1" }
Sidekiq.configure_client { |config| config.redis = REDIS }
Sidekiq.configure_server { |config| config.redis = REDIS }
Sidekiq.logger.level = Logger::ERROR
PAD = "p" * 170
$left = COUNT
LOCK = Mutex.new

class Work
  include Sidekiq::Worker
  def perform(_n, _pad)
    LOCK.synchronize { $left -= 1 }
  end
end

def clock = Process.clock_gettime(Process::CLOCK_MONOTONIC)

Sidekiq.redis(&:flushdb)
began = clock
(0...COUNT).each_slice(1000) { |slice| Sidekiq::Client.push_bulk("class" => Work, "args" => slice.map { |n| [n, PAD] }) }
if ARGV[0] == "drain"
  require "sidekiq/launcher"
  options = Sidekiq.options.merge(concurrency: 10, queues: ["default"], timeout: 5)
  launcher = Sidekiq::Launcher.new(options)
  began = clock
  launcher.run
  sleep 0.005 while $left.positive?
end
puts format("RESULT %.3f", COUNT / (clock - began))
exit! 0
