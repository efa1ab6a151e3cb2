"""What speech recognition is made of: audio, augmentation, Whisper's window, CTC, transcripts of long recordings."""
